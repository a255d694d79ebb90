"""psycopg against `mergeql serve --postgres PORT`: prepared statements, parameters, cursors, cancelling."""

import decimal
import sys
import threading

import psycopg
import psycopg.generators
import psycopg.waiting

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
    # A prepared statement works with the rows that are there when it runs, and so does a query.
    cursor.execute("CREATE TABLE kept (a INT, b INT)")
    for turn in range(8):
        cursor.execute("INSERT INTO kept VALUES (%s, %s)", (turn, 0), prepare=True)
        cursor.execute("UPDATE kept SET b = b + 1 WHERE a = %s", (turn,), prepare=True)
        assert cursor.execute("SELECT count(*), sum(b) FROM kept WHERE a >= %s", (0,), prepare=True).fetchone() == (turn + 1, turn + 1)
    cursor.execute("DELETE FROM kept WHERE a < 6")
    cursor.execute("INSERT INTO kept VALUES (%s, %s)", (9, 9), prepare=True)
    assert cursor.execute("SELECT a, b FROM kept ORDER BY a").fetchall() == [(6, 1), (7, 1), (9, 9)]
    cursor.execute("PREPARE asked AS SELECT a FROM kept WHERE b = 9")
    assert cursor.execute("EXECUTE asked").fetchall() == [(9,)]
    # Words that look like Postgres' own change nothing: a subquery is what it is.
    latest = "SELECT k.a, (SELECT max(kept.b) FROM kept WHERE kept.a = k.a) AS pg_b FROM kept AS k WHERE current_date > date '2020-01-01' ORDER BY 1"
    assert cursor.execute(latest).fetchall() == [(6, 1), (7, 1), (9, 9)]
    cursor.execute("SELECT current_user, 'a''''b', current_schema")
    assert [c.name for c in cursor.description][::2] == ["current_user", "current_schema"]
    assert cursor.fetchone()[1:] == ("a''b", "public")
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
    # A cursor over a query with parameters, and over a MERGE on several lines.
    with connection.cursor("asked") as asked:
        asked.execute("SELECT id FROM nyc WHERE id > %s", (1,))
        assert asked.fetchall() == [(2,)]
    # Names are folded, and room is made for the rows that are there.
    cursor.execute("DECLARE Few CURSOR FOR(SELECT id FROM nyc ORDER BY id)")
    assert cursor.execute("FETCH 1 FROM FEW", binary=True).fetchall() == [(1,)]
    assert cursor.execute("FETCH 10000000000000 FROM few").fetchall() == [(2,)]
    assert cursor.execute("FETCH ALL FROM few").fetchall() == []
    cursor.execute("CLOSE Few")
    cursor.execute("/* by a tool */ DECLARE few CURSOR FOR/**/SELECT 7")
    assert cursor.execute("FETCH NEXT FROM few").fetchall() == [(7,)]
    cursor.execute("CLOSE ALL")
    cursor.execute(f"DECLARE lines CURSOR\nFOR\n{merge}\nWHERE id < %s\nORDER BY id", (3,))
    assert [row[0] for row in cursor.execute("FETCH ALL FROM lines").fetchall()] == [1, 2]
    connection.commit()
    # A NULL whose type nobody knows has its own place.
    assert cursor.execute("SELECT %s, %s::int", (None, 5)).fetchone() == (None, 5)
    # Numbers are what they are, and not what is near them in a column's type.
    cursor.execute("CREATE TABLE numbers AS SELECT CAST(1 AS INT) AS id, CAST(1.01 AS DECIMAL(10, 2)) AS price, CAST(5 AS DECIMAL(38, 20)) AS exact")
    count = lambda where, *values: cursor.execute(f"SELECT count(*) FROM numbers WHERE {where}", values).fetchone()[0]
    number = decimal.Decimal
    assert count("id = %s", number("1.5")) == 0 and count("id < %s", number("1.5")) == 1 and count("id = %s", number("1")) == 1
    assert count("id = %s", 1.5) == 0 and count("id < %s", 3_000_000_000) == 1
    assert count("price = %s", number("1.005")) == 0 and count("price = %s", number("1.010")) == 1 and count("price > %s", 1) == 1
    assert count("exact < %s", number("12345678901.5")) == 1 and count("exact > %s", number("4.99999999999999999999")) == 1
    cursor.execute("INSERT INTO numbers VALUES (%s, %s, %s)", (2, 5, number("0.1")))
    assert cursor.execute("SELECT price, exact FROM numbers WHERE id = 2").fetchone() == (number("5.00"), number("0.1"))
    for wrong in (number("1.5"), number("99999999999")):
        try:
            cursor.execute("INSERT INTO numbers (id) VALUES (%s)", (wrong,))
        except psycopg.Error as error:
            assert "parameter" in str(error) or "range" in str(error) or "cast" in str(error).lower(), error
            connection.rollback()
        else:
            raise AssertionError(f"{wrong} went into a column of integers")
    assert count("id IS NULL") == 0
    cursor.execute("DROP TABLE numbers")
    assert cursor.execute("SELECT CAST(NULL AS INTERVAL)").fetchone() == (None,)
    every = "SELECT count(*) FROM nyc WHERE %(id)s IS NULL OR id = %(id)s"
    assert [cursor.execute(every, {"id": value}).fetchone() for value in (None, 2)] == [(2,), (1,)]
    for binary in (False, True):
        cursor.execute("SELECT arrow_cast(5, 'Int8'), [arrow_cast(-5, 'Int8')], arrow_cast(X'00ff', 'FixedSizeBinary(2)')", binary=binary)
        assert cursor.fetchone() == (5, [-5], b"\x00\xff")
    # Instants finer than the protocol's are the same in both formats.
    fine = "SELECT arrow_cast('2024-02-03T04:05:06.123456789', 'Timestamp(Nanosecond, None)')"
    assert cursor.execute(fine, binary=False).fetchone() == cursor.execute(fine, binary=True).fetchone()
    # What a merge asks for in WITH holds for the prepared one, too.
    rows = "SELECT value * 7919 %% 50021 AS id, repeat('x', 100) AS t FROM generate_series(1, 50000) WHERE value <= %s"
    many = f"MERGE ({rows}) AS s ON id"
    for prepare in (False, True):
        cursor.execute(f"{many} WITH (memory_limit = '64MB', sorted = false)", (20_000,), prepare=prepare)
        assert len(cursor.fetchall()) == 20_000
        connection.commit()
        try:
            cursor.execute(f"{many} WITH (memory_limit = '20KB')", (20_000,), prepare=prepare)
            raise AssertionError("it must not fit")
        except psycopg.Error as error:
            assert "limit_exceeded" in str(error), error
            connection.rollback()
    # A cursor goes forward, over rows that are fetched.
    cursor.execute("DECLARE lines CURSOR FOR SELECT id FROM nyc ORDER BY id")
    try:
        cursor.execute("MOVE 1 FROM lines")
        raise AssertionError("it must be refused")
    except psycopg.errors.FeatureNotSupported as error:
        assert "FETCH NEXT" in error.diag.message_hint, error.diag.message_hint
    connection.rollback()
    stop = threading.Timer(0.5, connection.cancel)
    stop.start()
    try:
        cursor.execute("SELECT count(*) FROM generate_series(1, 20000000000) AS a(x) WHERE x % 7 = 3")
        raise AssertionError("it must be cancelled")
    except psycopg.errors.QueryCanceled:
        connection.rollback()
    assert cursor.execute("SELECT 1 + 1").fetchone() == (2,)
    # Also while its rows come.
    rows = cursor.stream("SELECT value, repeat('x', 100) FROM generate_series(1, 3000000)")
    seen = 0
    try:
        for _ in rows:
            seen += 1
            if seen == 10:
                connection.cancel()
        raise AssertionError("it must be cancelled")
    except psycopg.errors.QueryCanceled:
        connection.rollback()
    assert seen < 2_000_000, seen
    # Numbers of any length, in both formats; what no client reads as a number ends no server.
    exact = decimal.Context(prec=80, rounding=decimal.ROUND_HALF_UP)
    for binary in (False, True):
        for number in ("0.5", "-123456789012345678901234567890", "1234567890123456789012345678.5"):
            for ty in ("decimal(38,5)", "decimal(38,0)", "decimal(38,10)", "decimal(60,20)"):
                if ty == "decimal(38,10)" and len(number) > 20:
                    continue
                (got,) = cursor.execute(f"SELECT cast('{number}' AS {ty})", binary=binary).fetchone()
                scale = int(ty.rstrip(")").split(",")[1])
                wanted = exact.quantize(decimal.Decimal(number), decimal.Decimal(1).scaleb(-scale))
                assert got == wanted, (got, number, ty)
        assert cursor.execute("SELECT arrow_cast(3, 'Float16')", binary=binary).fetchone() == (3.0,)
        assert cursor.execute("SELECT cast('0.5' AS decimal(38,30))", binary=binary).fetchone() == (decimal.Decimal("0.5"),)
    connection.commit()

# What was done before an error is told.
with psycopg.connect(conninfo, autocommit=True) as connection:
    done = connection.pgconn.exec_(b"INSERT INTO fresh VALUES (9, 'z')")
    assert done.command_status == b"INSERT 0 1", done.command_status
    connection.pgconn.send_query(b"INSERT INTO fresh VALUES (10, 'z'); SELECT * FROM nope")
    said = []
    while (result := psycopg.generators.fetch(connection.pgconn)) is not None:
        try:
            result = psycopg.waiting.wait(result, connection.pgconn.socket)
        except Exception as error:
            raise AssertionError(error)
        if result is None:
            break
        said.append(result.command_status or result.error_message.split(b"\n")[0])
    assert said[0] == b"INSERT 0 1" and b"nope" in said[1], said
    # In a transaction that failed, nothing runs until its end.
    with psycopg.connect(conninfo) as failed:
        for statement in ("SELECT * FROM nope", "SELECT 1", "SET search_path = public"):
            try:
                failed.execute(statement)
                raise AssertionError(f"it must fail: {statement}")
            except psycopg.errors.InFailedSqlTransaction:
                assert statement != "SELECT * FROM nope"
            except psycopg.errors.UndefinedTable:
                assert statement == "SELECT * FROM nope"
        failed.rollback()
        assert failed.execute("SELECT 1").fetchone() == (1,)
    for refused in (
        "SET datafusion.runtime.memory_limit = '2G'",
        "RESET datafusion.runtime.memory_limit",
        "CREATE VIEW v AS SELECT * FROM nyc WHERE id = %s",
        "MERGE INTO nyc USING (SELECT * FROM nyc WHERE id = %s) AS z ON id",
    ):
        try:
            connection.execute(refused, (1,) if "%s" in refused else None)
            raise AssertionError(f"it must be refused: {refused}")
        except psycopg.errors.FeatureNotSupported:
            pass
print("done")
