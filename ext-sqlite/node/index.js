'use strict';

const fs = require('node:fs');
const path = require('node:path');

/** The path of the extension, for whatever loads it. */
function loadablePath() {
  const name = fs.readdirSync(__dirname).find((name) => name.startsWith('mergeql0.'));
  if (!name) throw new Error('this build of mergeql-sqlite has no extension in it');
  return path.join(__dirname, name);
}

/** Loads the extension into a database of better-sqlite3, or of node:sqlite opened with `allowExtension`. */
function load(database) {
  const guarded = typeof database.enableLoadExtension === 'function';
  if (guarded) database.enableLoadExtension(true);
  try {
    database.loadExtension(loadablePath());
  } finally {
    if (guarded) database.enableLoadExtension(false);
  }
}

module.exports = { load, loadablePath };
