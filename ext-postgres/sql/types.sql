-- States: the bytes of docs/state-format.md, shown as JSON.

CREATE TYPE crdt;

CREATE FUNCTION crdt_in(cstring) RETURNS crdt AS 'MODULE_PATHNAME', 'mergeql_state_in' LANGUAGE C IMMUTABLE STRICT PARALLEL SAFE;
COMMENT ON FUNCTION crdt_in(cstring) IS 'reads the JSON that crdt_out writes, or bytes as \x...';
CREATE FUNCTION crdt_out(crdt) RETURNS cstring AS 'MODULE_PATHNAME', 'mergeql_state_out' LANGUAGE C IMMUTABLE STRICT PARALLEL SAFE;
COMMENT ON FUNCTION crdt_out(crdt) IS 'a state as JSON: its type, its value, its bytes';
CREATE FUNCTION crdt_recv(internal) RETURNS crdt AS 'MODULE_PATHNAME', 'mergeql_state_recv' LANGUAGE C IMMUTABLE STRICT PARALLEL SAFE;
COMMENT ON FUNCTION crdt_recv(internal) IS 'the state bytes, checked';
CREATE FUNCTION crdt_send(crdt) RETURNS bytea AS 'MODULE_PATHNAME', 'mergeql_state_raw' LANGUAGE C IMMUTABLE STRICT PARALLEL SAFE;
COMMENT ON FUNCTION crdt_send(crdt) IS 'the state bytes';

CREATE TYPE crdt (
    INPUT = crdt_in, OUTPUT = crdt_out, RECEIVE = crdt_recv, SEND = crdt_send,
    INTERNALLENGTH = VARIABLE, ALIGNMENT = int4, STORAGE = extended
);
COMMENT ON TYPE crdt IS 'the state of a CRDT: join states with ||, ask for their value with crdt_value';

CREATE FUNCTION crdt(bytea) RETURNS crdt AS 'MODULE_PATHNAME', 'mergeql_state_cast' LANGUAGE C IMMUTABLE STRICT PARALLEL SAFE;
COMMENT ON FUNCTION crdt(bytea) IS 'state bytes as a state, checked';
CREATE FUNCTION bytea(crdt) RETURNS bytea AS 'MODULE_PATHNAME', 'mergeql_state_raw' LANGUAGE C IMMUTABLE STRICT PARALLEL SAFE;
COMMENT ON FUNCTION bytea(crdt) IS 'the bytes of a state';
CREATE CAST (bytea AS crdt) WITH FUNCTION crdt(bytea) AS ASSIGNMENT;
CREATE CAST (crdt AS bytea) WITH FUNCTION bytea(crdt) AS ASSIGNMENT;

CREATE FUNCTION crdt_eq(crdt, crdt) RETURNS boolean AS 'MODULE_PATHNAME', 'mergeql_state_eq' LANGUAGE C IMMUTABLE STRICT PARALLEL SAFE;
COMMENT ON FUNCTION crdt_eq(crdt, crdt) IS 'the same state';
CREATE FUNCTION crdt_ne(crdt, crdt) RETURNS boolean AS 'MODULE_PATHNAME', 'mergeql_state_ne' LANGUAGE C IMMUTABLE STRICT PARALLEL SAFE;
COMMENT ON FUNCTION crdt_ne(crdt, crdt) IS 'not the same state';
CREATE FUNCTION crdt_le(crdt, crdt) RETURNS boolean AS 'MODULE_PATHNAME', 'mergeql_state_le' LANGUAGE C IMMUTABLE STRICT PARALLEL SAFE;
COMMENT ON FUNCTION crdt_le(crdt, crdt) IS 'the second state knows all that the first does';
CREATE FUNCTION crdt_lt(crdt, crdt) RETURNS boolean AS 'MODULE_PATHNAME', 'mergeql_state_lt' LANGUAGE C IMMUTABLE STRICT PARALLEL SAFE;
COMMENT ON FUNCTION crdt_lt(crdt, crdt) IS 'the second state knows all that the first does, and more';
CREATE FUNCTION crdt_ge(crdt, crdt) RETURNS boolean AS 'MODULE_PATHNAME', 'mergeql_state_ge' LANGUAGE C IMMUTABLE STRICT PARALLEL SAFE;
COMMENT ON FUNCTION crdt_ge(crdt, crdt) IS 'the first state knows all that the second does';
CREATE FUNCTION crdt_gt(crdt, crdt) RETURNS boolean AS 'MODULE_PATHNAME', 'mergeql_state_gt' LANGUAGE C IMMUTABLE STRICT PARALLEL SAFE;
COMMENT ON FUNCTION crdt_gt(crdt, crdt) IS 'the first state knows all that the second does, and more';
CREATE FUNCTION crdt_hash(crdt) RETURNS integer AS 'MODULE_PATHNAME', 'mergeql_state_hash' LANGUAGE C IMMUTABLE STRICT PARALLEL SAFE;
COMMENT ON FUNCTION crdt_hash(crdt) IS 'the checksum of a state, for hash joins and GROUP BY';

CREATE OPERATOR = (LEFTARG = crdt, RIGHTARG = crdt, FUNCTION = crdt_eq, COMMUTATOR = =, NEGATOR = <>, RESTRICT = eqsel, JOIN = eqjoinsel, HASHES);
CREATE OPERATOR <> (LEFTARG = crdt, RIGHTARG = crdt, FUNCTION = crdt_ne, COMMUTATOR = <>, NEGATOR = =, RESTRICT = neqsel, JOIN = neqjoinsel);
-- The order of a lattice: neither of two concurrent states is less, so these have no negators and no index.
CREATE OPERATOR <= (LEFTARG = crdt, RIGHTARG = crdt, FUNCTION = crdt_le, COMMUTATOR = >=);
CREATE OPERATOR < (LEFTARG = crdt, RIGHTARG = crdt, FUNCTION = crdt_lt, COMMUTATOR = >);
CREATE OPERATOR >= (LEFTARG = crdt, RIGHTARG = crdt, FUNCTION = crdt_ge, COMMUTATOR = <=);
CREATE OPERATOR > (LEFTARG = crdt, RIGHTARG = crdt, FUNCTION = crdt_gt, COMMUTATOR = <);
CREATE OPERATOR CLASS crdt_hash_ops DEFAULT FOR TYPE crdt USING hash AS OPERATOR 1 =, FUNCTION 1 crdt_hash(crdt);

-- Typed values between functions of the lowering: a row whose fields have names.

CREATE TYPE mergeql_value;
CREATE FUNCTION mergeql_value_in(cstring) RETURNS mergeql_value AS 'MODULE_PATHNAME', 'mergeql_value_in' LANGUAGE C IMMUTABLE STRICT PARALLEL SAFE;
COMMENT ON FUNCTION mergeql_value_in(cstring) IS 'values of this type are not written by hand';
CREATE FUNCTION mergeql_value_out(mergeql_value) RETURNS cstring AS 'MODULE_PATHNAME', 'mergeql_value_out' LANGUAGE C IMMUTABLE STRICT PARALLEL SAFE;
COMMENT ON FUNCTION mergeql_value_out(mergeql_value) IS 'a value as JSON';
CREATE TYPE mergeql_value (INPUT = mergeql_value_in, OUTPUT = mergeql_value_out, INTERNALLENGTH = VARIABLE, ALIGNMENT = int4, STORAGE = extended);
COMMENT ON TYPE mergeql_value IS 'a typed value between functions of MergeQL';

-- Steps of every aggregate.

CREATE FUNCTION _crdt_encoded(internal) RETURNS bytea AS 'MODULE_PATHNAME', 'mergeql_encoded' LANGUAGE C STRICT PARALLEL SAFE;
CREATE FUNCTION _crdt_state(internal) RETURNS crdt AS 'MODULE_PATHNAME', 'mergeql_encoded' LANGUAGE C STRICT PARALLEL SAFE;
CREATE FUNCTION _crdt_sent(bytea, internal) RETURNS internal AS 'MODULE_PATHNAME', 'mergeql_sent' LANGUAGE C STRICT PARALLEL SAFE;
CREATE FUNCTION _crdt_combine(internal, internal) RETURNS internal AS 'MODULE_PATHNAME', 'mergeql_combine' LANGUAGE C PARALLEL SAFE;
CREATE FUNCTION _crdt_merge_update(internal, crdt) RETURNS internal AS 'MODULE_PATHNAME', 'mergeql_merge' LANGUAGE C PARALLEL SAFE;
CREATE FUNCTION _crdt_merge_update(internal, bytea) RETURNS internal AS 'MODULE_PATHNAME', 'mergeql_merge' LANGUAGE C PARALLEL SAFE;

CREATE AGGREGATE crdt_merge(crdt) (
    SFUNC = _crdt_merge_update, STYPE = internal, SSPACE = 256, FINALFUNC = _crdt_state,
    COMBINEFUNC = _crdt_combine, SERIALFUNC = _crdt_encoded, DESERIALFUNC = _crdt_sent, PARALLEL = SAFE
);
COMMENT ON AGGREGATE crdt_merge(crdt) IS 'the join of states';
CREATE AGGREGATE crdt_merge(bytea) (
    SFUNC = _crdt_merge_update, STYPE = internal, SSPACE = 256, FINALFUNC = _crdt_state,
    COMBINEFUNC = _crdt_combine, SERIALFUNC = _crdt_encoded, DESERIALFUNC = _crdt_sent, PARALLEL = SAFE
);
COMMENT ON AGGREGATE crdt_merge(bytea) IS 'the join of states, given as bytes';
