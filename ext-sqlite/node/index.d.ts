/** The path of the extension, for whatever loads it. */
export function loadablePath(): string;

/** Loads the extension into a database of better-sqlite3, or of node:sqlite opened with `allowExtension`. */
export function load(database: { loadExtension(path: string): unknown; enableLoadExtension?(allow: boolean): unknown }): void;
