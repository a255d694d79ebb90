"""The ADBC driver of Flight SQL and pyarrow's Flight client against `mergeql serve --flight PORT`."""

import sys
import warnings

import adbc_driver_flightsql.dbapi as flightsql
import pyarrow as pa
import pyarrow.flight
import pyarrow.parquet
from adbc_driver_flightsql import DatabaseOptions
from adbc_driver_manager import Error

warnings.simplefilter("ignore")
port, what = sys.argv[1:]
plain = f"grpc://127.0.0.1:{port}"
merge = "MERGE nyc, london ON id STRATEGY salary = max, tag = union"


def one(uri, options=None):
    with flightsql.connect(uri, db_kwargs=options or {}) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT 41 + 1 AS answer")
        return cursor.fetchall()


def refused(uri, options=None):
    try:
        one(uri, options)
    except Error:
        return True
    return False


if what == "statements":
    with flightsql.connect(plain) as connection, connection.cursor() as cursor:
        nyc = pa.table({"id": pa.array([1, 2], pa.int32()), "salary": [90, 72], "tag": ["a", "b"]})
        assert cursor.adbc_ingest("nyc", nyc) == 2
        cursor.execute("CREATE TABLE london (id INT, salary BIGINT, tag TEXT) AS VALUES (1, 85, 'c'), (3, 64, 'd')")
        cursor.execute(f"{merge} ORDER BY id")
        table = cursor.fetch_arrow_table()
        assert table.schema.field("tag").type == pa.string(), table.schema
        assert table.to_pydict() == {"id": [1, 2, 3], "salary": [90, 72, 64], "tag": ["a,c", "b", "d"]}, table
        cursor.execute(f"{merge} WHERE id >= $1 ORDER BY id", parameters=(2,))
        assert cursor.fetchall() == [(2, 72, "b"), (3, 64, "d")]
        # As the driver's own style has it.
        cursor.execute(f"{merge} WHERE id >= ? AND tag <> ? ORDER BY id", parameters=(2, "d"))
        assert cursor.fetchall() == [(2, 72, "b")]
        words = pa.table({"id": [1, 2], "word": pa.array(["x", "y"]).dictionary_encode(), "half": pa.array([0.5, 1.5], pa.float32())})
        pyarrow.parquet.write_table(words, "words.parquet")
        for query in ("SELECT * FROM 'words.parquet' ORDER BY id", "MERGE 'words.parquet' ON id ORDER BY id"):
            cursor.execute(query)
            assert cursor.fetch_arrow_table().to_pydict() == words.to_pydict(), query
        cursor.execute("MERGE INTO nyc USING london ON id STRATEGY salary = max, tag = union")
        cursor.fetchall()
        cursor.execute("SELECT count(*) FROM nyc")
        assert cursor.fetchall() == [(3,)]
        cursor.executemany("INSERT INTO london VALUES ($1, $2, $3)", [(8, 1, "p"), (9, 2, None)])
        cursor.execute("SELECT id, tag FROM london WHERE id > 3 ORDER BY id")
        assert cursor.fetchall() == [(8, "p"), (9, None)]
        # Each row of parameters works with what the one before it left.
        cursor.executemany("UPDATE london SET salary = $2 WHERE id = $1", [(8, 10), (9, 20)])
        cursor.execute("SELECT id, salary FROM london WHERE id > 3 ORDER BY id")
        assert cursor.fetchall() == [(8, 10), (9, 20)]
        cursor.execute("PREPARE many AS SELECT count(*) FROM london WHERE id > 3")
        cursor.fetchall()
        cursor.execute("EXECUTE many")
        assert cursor.fetchall() == [(2,)]
        # No row of parameters: nothing runs.
        types = pa.schema([("a", pa.int32()), ("b", pa.int64()), ("c", pa.string())])
        cursor.executemany("INSERT INTO london VALUES ($1, $2, $3)", types.empty_table())
        cursor.execute("SELECT count(*) FROM london WHERE id > 3")
        assert cursor.fetchall() == [(2,)]
        rows = "SELECT value * 7919 % 50021 AS id, repeat('x', 100) AS t FROM generate_series(1, 50000) WHERE value <= $1"
        many = f"MERGE ({rows}) AS s ON id"
        cursor.execute(f"{many} WITH (memory_limit = '64MB', sorted = false)", parameters=(20_000,))
        assert cursor.fetch_arrow_table().num_rows == 20_000
        try:
            cursor.execute(f"{many} WITH (memory_limit = '20KB')", parameters=(20_000,))
            cursor.fetchall()
            raise AssertionError("it must not fit")
        except Error as error:
            assert "limit_exceeded" in str(error), error
        assert cursor.adbc_ingest("nyc", nyc, mode="append") == 2
        # By the names of the columns.
        assert cursor.adbc_ingest("named", pa.table({"a": [1], "b": [2]})) == 1
        assert cursor.adbc_ingest("named", pa.table({"b": [20], "a": [10]}), mode="append") == 1
        cursor.execute("SELECT a, b FROM named ORDER BY a")
        assert cursor.fetchall() == [(1, 2), (10, 20)]
        try:
            cursor.adbc_ingest("named", pa.table({"b": [20], "c": [10]}), mode="append")
            raise AssertionError("there is no column c")
        except Error:
            pass
        try:
            cursor.execute("SET datafusion.catalog.default_schema = 'nope'")
            cursor.fetchall()
            raise AssertionError("settings are shared")
        except Error:
            pass
        cursor.execute("SELECT count(*) FROM nyc")
        assert cursor.fetchall() == [(5,)]
        # A batch beyond gRPC's usual 4 MB.
        big = pa.table({"id": pa.array(range(400_000), pa.int64()), "half": [i / 2 for i in range(400_000)]})
        assert cursor.adbc_ingest("big", big.combine_chunks()) == 400_000
        cursor.execute("SELECT count(*), max(half) FROM big")
        assert cursor.fetchall() == [(400_000, 199_999.5)]
        assert cursor.adbc_ingest("hollow", pyarrow.RecordBatch.from_pylist([], schema=nyc.schema)) == 0
        cursor.execute("SELECT count(*), max(tag) FROM hollow")
        assert cursor.fetchall() == [(0, None)]
        for mode in ("create", "append"):
            try:
                cursor.adbc_ingest("nyc" if mode == "create" else "nothing", nyc, mode=mode)
                raise AssertionError("it must fail")
            except Error:
                pass
        # Rows beyond one batch, in order.
        cursor.execute("SELECT value FROM generate_series(1, 100000) ORDER BY value")
        assert cursor.fetch_arrow_table().column(0).to_pylist() == list(range(1, 100001))
        try:
            cursor.execute(f"{merge}x")
            raise AssertionError("it must fail")
        except Error as error:
            assert "unknown_strategy" in str(error) and "did you mean" in str(error), error
        catalogs = connection.adbc_get_objects(depth="tables").read_all().to_pylist()
        tables = [t["table_name"] for c in catalogs for s in c["catalog_db_schemas"] for t in s["db_schema_tables"]]
        assert "nyc" in tables and "london" in tables, tables
        assert connection.adbc_get_table_schema("nyc").names == ["id", "salary", "tag"]
        assert connection.adbc_get_table_types() == ["TABLE", "VIEW"]
        assert connection.adbc_get_info()["vendor_name"] == "MergeQL"
elif what in ("few", "many"):
    batches = 1 if what == "few" else 100
    batch = pa.record_batch({"id": pa.array(range(100_000), pa.int64()), "half": [i / 2 for i in range(100_000)]})
    rows = pa.RecordBatchReader.from_batches(batch.schema, (batch for _ in range(batches)))
    with flightsql.connect(plain) as connection, connection.cursor() as cursor:
        assert cursor.adbc_ingest(what, rows) == batches * 100_000
        cursor.execute(f"SELECT count(*), max(half) FROM {what}")
        assert cursor.fetchall() == [(batches * 100_000, 49_999.5)]
elif what == "door":
    assert refused(plain)
    assert refused(plain, {"username": "ann", "password": "closed"})
    assert refused(plain, {DatabaseOptions.AUTHORIZATION_HEADER.value: "Bearer another-token"})
    assert one(plain, {"username": "ann", "password": "open sesame"}) == [(42,)]
    assert one(plain, {DatabaseOptions.AUTHORIZATION_HEADER.value: "Bearer a-long-token"}) == [(42,)]
    # pyarrow's own client: the handshake gives a token, which opens later calls.
    client = pyarrow.flight.connect(plain)
    header = client.authenticate_basic_token("ann", "open sesame")
    assert header[0] == b"authorization" and header[1].startswith(b"Bearer "), header
elif what == "tls":
    with open("cert.pem") as file:
        root = file.read()
    options = {
        DatabaseOptions.AUTHORIZATION_HEADER.value: "Bearer a-long-token",
        DatabaseOptions.TLS_ROOT_CERTS.value: root,
    }
    assert one(f"grpc+tls://localhost:{port}", options) == [(42,)]
    assert refused(f"grpc+tls://localhost:{port}", {DatabaseOptions.TLS_ROOT_CERTS.value: root})
    assert refused(plain, {DatabaseOptions.AUTHORIZATION_HEADER.value: "Bearer a-long-token"})
elif what == "command":
    # A prepared command is no query, whatever a client asks for.
    def field(number, data):
        assert len(data) < 1 << 14
        return bytes([number << 3 | 2, len(data) & 127 | 128, len(data) >> 7]) + data

    def message(name, data):
        return field(1, f"type.googleapis.com/arrow.flight.protocol.sql.{name}".encode()) + field(2, data)

    def first_field(data):
        length, start = data[1] & 127, 2
        if data[1] > 127:
            length, start = length | data[2] << 7, 3
        return data[start : start + length], data[start + length :]

    client = pyarrow.flight.connect(plain)
    text = field(1, b"COPY (SELECT 1 AS a) TO 'out.parquet'")
    action = pyarrow.flight.Action("CreatePreparedStatement", message("ActionCreatePreparedStatementRequest", text))
    (answer,) = client.do_action(action)
    handle, _ = first_field(first_field(first_field(answer.body.to_pybytes())[1])[0])
    try:
        client.do_get(pyarrow.flight.Ticket(message("CommandPreparedStatementQuery", field(1, handle)))).read_all()
        raise AssertionError("it must be refused")
    except pyarrow.ArrowInvalid as error:
        assert "no query" in str(error), error
elif what == "shared":
    with flightsql.connect(plain) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT * FROM shared")
        assert cursor.fetchall() == [(5,)]
print("done")
