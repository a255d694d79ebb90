"""MergeQL in SQLite: conflict-free merging, CRDT aggregates and replicated tables."""

import os

__all__ = ["load", "loadable_path"]


def loadable_path():
    """The path of the extension, for whatever loads it."""
    folder = os.path.dirname(os.path.abspath(__file__))
    names = [name for name in os.listdir(folder) if name.startswith("mergeql0.")]
    if not names:
        raise FileNotFoundError("this build of mergeql-sqlite has no extension in it")
    return os.path.join(folder, names[0])


def load(connection):
    """Loads the extension into a connection of Python's sqlite3 (or of what has the same two methods)."""
    connection.enable_load_extension(True)
    try:
        connection.execute("SELECT load_extension(?, 'sqlite3_mergeql_init')", [loadable_path()])
    finally:
        connection.enable_load_extension(False)
