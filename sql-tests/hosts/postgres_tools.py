"""SQLAlchemy and asyncpg on a server of ours: postgres_tools.py PORT. What they ask of Postgres' catalogues is answered."""

import asyncio
import datetime
import sys

import asyncpg
from sqlalchemy import MetaData, Table, create_engine, func, inspect, select, text

port = sys.argv[1]
MERGE = "MERGE nyc, london ON id STRATEGY salary = max, tag = union ORDER BY id"

for driver in ["psycopg", "pg8000"]:
    engine = create_engine(f"postgresql+{driver}://me@127.0.0.1:{port}/datafusion")
    with engine.connect() as connection:
        rows = connection.execute(text(MERGE)).fetchall()
        assert [tuple(r) for r in rows] == [(1, 90, "a,c"), (2, 72, "b"), (3, 64, "d")], rows
        with connection.begin_nested():
            assert connection.execute(text("SELECT 1")).scalar() == 1
        # A failure within a savepoint leaves the transaction.
        try:
            with connection.begin_nested():
                connection.execute(text("SELECT nothing"))
            raise AssertionError("there is no such column")
        except Exception as error:
            assert "nothing" in str(error), error
        assert connection.execute(text("SELECT 2")).scalar() == 2
    about = inspect(engine)
    assert about.default_schema_name == "public", about.default_schema_name
    assert "public" in about.get_schema_names(), about.get_schema_names()
    assert {"london", "nyc"} <= set(about.get_table_names()), about.get_table_names()
    assert about.has_table("nyc") and not about.has_table("paris")
    columns = [(c["name"], str(c["type"])) for c in about.get_columns("nyc")]
    assert columns == [("id", "INTEGER"), ("salary", "INTEGER"), ("tag", "TEXT")], columns
    assert about.get_pk_constraint("nyc")["constrained_columns"] == []
    assert about.get_indexes("nyc") == [] and about.get_foreign_keys("nyc") == []
    nyc = Table("nyc", MetaData(), autoload_with=engine)
    with engine.connect() as connection:
        query = select(nyc.c.tag, func.sum(nyc.c.salary)).where(nyc.c.id > 0).group_by(nyc.c.tag).order_by(nyc.c.tag)
        assert [tuple(r) for r in connection.execute(query)] == [("a", 90), ("b", 72)]


async def main():
    pool = await asyncpg.create_pool(f"postgresql://me@127.0.0.1:{port}/datafusion", min_size=1, max_size=2)
    async with pool.acquire() as connection:
        # What is cast has the type of the cast.
        assert await connection.fetchval("SELECT $1::int + salary FROM nyc WHERE id = 1", 1) == 91
        assert await connection.fetchval("SELECT $1::date", datetime.date(2024, 1, 2)) == datetime.date(2024, 1, 2)
        rows = await connection.fetch("MERGE nyc, london ON id STRATEGY salary = max, tag = union WHERE salary > $1 ORDER BY id", 70)
        assert [tuple(r) for r in rows] == [(1, 90, "a,c"), (2, 72, "b")], rows
        row = await connection.fetchrow("SELECT 1.5::decimal(5, 2) AS d, TIMESTAMPTZ '2024-01-01T00:00:00Z' AS t")
        assert str(row["d"]) == "1.50" and row["t"].year == 2024, row
        async with connection.transaction():
            count = 0
            async for _ in connection.cursor("SELECT value FROM generate_series(1, 500) AS t(value)"):
                count += 1
            assert count == 500
    # The pool's reset: locks, listeners, settings.
    async with pool.acquire() as connection:
        assert await connection.fetchval("SELECT current_setting('server_version_num')") == "160006"
        assert (await connection.fetchval("SELECT version()")).startswith("PostgreSQL 16.6 (MergeQL")
        assert await connection.fetchval("SELECT to_regclass('nyc') IS NOT NULL")
        assert not await connection.fetchval("SELECT to_regclass('paris') IS NOT NULL")
    await pool.close()


asyncio.run(main())
print("done")
