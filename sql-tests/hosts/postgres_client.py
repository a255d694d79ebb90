"""psycopg against `mergeql serve --postgres PORT`: prepared statements, parameters, cursors, cancelling."""

import sys
import threading

import psycopg

conninfo = f"host=127.0.0.1 port={sys.argv[1]} user=me dbname=datafusion"
merge = "MERGE nyc, london ON id STRATEGY salary = max, tag = union"

with psycopg.connect(conninfo) as connection:
    cursor = connection.cursor()
    cursor.execute(f"{merge} WHERE id >= %s ORDER BY id", (2,))
    assert [c.name for c in cursor.description] == ["id", "salary", "tag"], cursor.description
    assert cursor.fetchall() == [(2, 72, "b"), (3, 64, "d")]
    # Prepared once, run many times, values in binary.
    for wanted in range(1, 8):
        cursor.execute("SELECT salary, tag FROM nyc WHERE id = %b", (wanted % 2 + 1,), prepare=True, binary=True)
        assert cursor.fetchone() == ((72, "b") if wanted % 2 else (90, "a"))
    cursor.execute("CREATE TABLE fresh (a INT, b TEXT)")
    cursor.executemany("INSERT INTO fresh VALUES (%s, %s)", [(1, "x"), (2, None)])
    assert cursor.execute("SELECT * FROM fresh ORDER BY a").fetchall() == [(1, "x"), (2, None)]
    assert cursor.execute("MERGE INTO fresh USING (SELECT 2 AS a, 'y' AS b) AS s ON a").statusmessage == "MERGE 2"
    # What the protocol has no type for is JSON.
    for binary in (False, True):
        cursor.execute("SELECT MAP {'k': 1}, [[1], [2, 3]], [1, 2]", binary=binary)
        assert cursor.fetchone() == ('{"k":1}', "[[1],[2,3]]", [1, 2])
    try:
        cursor.execute(f"{merge}x")
        raise AssertionError("it must fail")
    except psycopg.errors.UndefinedFunction as error:
        assert error.diag.statement_position and error.diag.message_hint, error.diag
    connection.rollback()
    with connection.cursor("named") as named:
        named.execute("SELECT * FROM nyc ORDER BY id")
        assert named.fetchmany(1) == [(1, 90, "a")]
        assert named.fetchall() == [(2, 72, "b")]
    connection.commit()
    stop = threading.Timer(0.5, connection.cancel)
    stop.start()
    try:
        cursor.execute("SELECT count(*) FROM generate_series(1, 20000000000) AS a(x) WHERE x % 7 = 3")
        raise AssertionError("it must be cancelled")
    except psycopg.errors.QueryCanceled:
        connection.rollback()
    assert cursor.execute("SELECT 1 + 1").fetchone() == (2,)
print("done")
