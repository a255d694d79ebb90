-- What the lowering of statements needs beside the functions of the core.

CREATE FUNCTION mergeql_exact_double("any") RETURNS double precision AS 'MODULE_PATHNAME', 'mergeql_scalar' LANGUAGE C IMMUTABLE PARALLEL SAFE;
COMMENT ON FUNCTION mergeql_exact_double("any") IS 'an integer as a double that holds it exactly, or an error';
CREATE FUNCTION mergeql_exact_double(bigint[]) RETURNS double precision[] AS 'MODULE_PATHNAME', 'mergeql_scalar' LANGUAGE C IMMUTABLE PARALLEL SAFE;
COMMENT ON FUNCTION mergeql_exact_double(bigint[]) IS 'integers as doubles that hold them exactly, or an error';
CREATE FUNCTION mergeql_record(VARIADIC "any") RETURNS mergeql_value AS 'MODULE_PATHNAME', 'mergeql_scalar' LANGUAGE C IMMUTABLE PARALLEL SAFE;
COMMENT ON FUNCTION mergeql_record("any") IS 'names and values in turn, as one value';
CREATE FUNCTION mergeql_record() RETURNS mergeql_value AS 'MODULE_PATHNAME', 'mergeql_scalar' LANGUAGE C IMMUTABLE PARALLEL SAFE;
COMMENT ON FUNCTION mergeql_record() IS 'a value without fields';
CREATE FUNCTION mergeql_canonical(anyelement) RETURNS anyelement AS 'MODULE_PATHNAME', 'mergeql_scalar' LANGUAGE C IMMUTABLE PARALLEL SAFE;
COMMENT ON FUNCTION mergeql_canonical(anyelement) IS 'a value with canonical zeros and NaNs';
CREATE FUNCTION mergeql_divide(integer, integer) RETURNS integer LANGUAGE sql IMMUTABLE PARALLEL SAFE AS 'SELECT $1 OPERATOR(pg_catalog./) $2';
CREATE FUNCTION mergeql_divide(bigint, bigint) RETURNS bigint LANGUAGE sql IMMUTABLE PARALLEL SAFE AS 'SELECT $1 OPERATOR(pg_catalog./) $2';
CREATE FUNCTION mergeql_divide(numeric, numeric) RETURNS numeric LANGUAGE sql IMMUTABLE PARALLEL SAFE AS 'SELECT $1 OPERATOR(pg_catalog./) $2';
CREATE FUNCTION mergeql_divide(double precision, double precision) RETURNS double precision AS 'MODULE_PATHNAME', 'mergeql_scalar' LANGUAGE C IMMUTABLE PARALLEL SAFE;
COMMENT ON FUNCTION mergeql_divide(integer, integer) IS 'integers divided as integers, towards zero';
COMMENT ON FUNCTION mergeql_divide(bigint, bigint) IS 'integers divided as integers, towards zero';
COMMENT ON FUNCTION mergeql_divide(numeric, numeric) IS 'numbers divided';
COMMENT ON FUNCTION mergeql_divide(double precision, double precision) IS 'doubles divided; by zero that is infinite, or no number';

CREATE FUNCTION mergeql_value_like(crdt, anyelement) RETURNS anyelement AS 'MODULE_PATHNAME', 'mergeql_scalar' LANGUAGE C IMMUTABLE PARALLEL SAFE;
COMMENT ON FUNCTION mergeql_value_like(crdt, anyelement) IS 'the value of a state in the type of the second argument';

CREATE OPERATOR || (LEFTARG = crdt, RIGHTARG = crdt, FUNCTION = crdt_join, COMMUTATOR = ||);

-- Strategies that users define, kept with the database.

CREATE TABLE mergeql_user_strategies (name text PRIMARY KEY, definition text NOT NULL);
COMMENT ON TABLE mergeql_user_strategies IS 'strategies made by CREATE STRATEGY';
SELECT pg_catalog.pg_extension_config_dump('mergeql_user_strategies', '');
GRANT SELECT ON mergeql_user_strategies TO PUBLIC;
-- In a trusted extension tables are the superuser's: who installed it makes its strategies.
GRANT INSERT, UPDATE, DELETE ON mergeql_user_strategies TO @extowner@;

-- Statements.

CREATE FUNCTION mergeql_sql(statement text) RETURNS text AS 'MODULE_PATHNAME', 'mergeql_statement_sql' LANGUAGE C VOLATILE STRICT;
COMMENT ON FUNCTION mergeql_sql(text) IS 'the plain SQL that a statement stands for';
CREATE FUNCTION mergeql(statement text) RETURNS SETOF record AS 'MODULE_PATHNAME', 'mergeql_statement_rows' LANGUAGE C VOLATILE STRICT;
COMMENT ON FUNCTION mergeql(text) IS 'the rows of a statement, in columns that the caller lists';
CREATE FUNCTION mergeql(row_type anyelement, statement text) RETURNS SETOF anyelement AS 'MODULE_PATHNAME', 'mergeql_statement_typed' LANGUAGE C VOLATILE;
COMMENT ON FUNCTION mergeql(anyelement, text) IS 'the rows of a statement, in the row type of the first argument';
CREATE FUNCTION mergeql_json(statement text) RETURNS SETOF jsonb AS 'MODULE_PATHNAME', 'mergeql_statement_json' LANGUAGE C VOLATILE STRICT;
COMMENT ON FUNCTION mergeql_json(text) IS 'the rows of a statement as JSON';
CREATE PROCEDURE mergeql_into(statement text) AS 'MODULE_PATHNAME', 'mergeql_statement_into' LANGUAGE C;
COMMENT ON PROCEDURE mergeql_into(text) IS 'runs a statement that writes: MERGE INTO, MERGE ... INTO, CREATE and DROP STRATEGY';
CREATE FUNCTION mergeql_adopt(name text) RETURNS bigint AS 'MODULE_PATHNAME', 'mergeql_statement_adopt' LANGUAGE C VOLATILE STRICT;
COMMENT ON FUNCTION mergeql_adopt(text) IS 'takes rows of a table that keeps states, edited by hand, in as rows';
CREATE PROCEDURE mergeql_create(kind text, name text, statement text) AS 'MODULE_PATHNAME', 'mergeql_statement_create' LANGUAGE C;
COMMENT ON PROCEDURE mergeql_create(text, text, text) IS 'makes a view, a materialized view or a table of a merge';
