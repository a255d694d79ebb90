{#- Rows of many types: `batch` 1 or 2, or 0 for both. Of customer 1 the second batch is newer, of customer 2 it says nothing, customer 3 is new there. -#}
{% macro typed_rows(batch) %}
  {{ return(adapter.dispatch('typed_rows', 'mergeql_integration_tests')(batch)) }}
{% endmacro %}

{% macro duckdb__typed_rows(batch) %}
select * exclude (batch) from (
  select 1 as batch, 1 as id, 1 as v, '\x00\xFF'::blob as bytes, interval '14 months 2 days 3.5 seconds' as gap, {'a': 1, 'b': 'x'} as pair,
    [1, 2] as numbers, ['\x01'::blob] as pieces, 1.50::decimal(10, 2) as amount, 'nan'::double as ratio, date '2024-02-29' as on_day,
    timestamp '2024-02-29 01:02:03.000004' as at_time, '{"a": [1]}'::json as doc, 'b9d1c9a2-0000-4000-8000-00000000000a'::uuid as token,
    170141183460469231731687303715884105727::hugeint as huge, true as fine, 'it''s "so" \ ' as words, time '01:02:03' as of_day
  union all
  select 2, 1, 2, '\x27\x5C'::blob, interval '-3 days', {'a': 2, 'b': NULL}, [3], ['\x02'::blob, '\x00'::blob], -0.05, 2.5, date '1900-01-01',
    timestamp '1969-12-31 23:59:59.999999', '[]'::json, '00000000-0000-4000-8000-00000000000b'::uuid, -1::hugeint, false, 'ü', time '23:59:59.5'
  union all
  select 1, 2, 1, '\x05'::blob, interval '1 month', {'a': 3, 'b': 'y'}, [4], ['\x03'::blob], 7, 'inf'::double, date '2000-01-01',
    timestamp '2000-01-01 00:00:00', '{}'::json, '10000000-0000-4000-8000-00000000000c'::uuid, 5::hugeint, true, '', time '00:00:00'
  union all
  select 2, 2, 2, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL
  union all
  select 2, 3, 1, '\x06'::blob, interval '0 days', {'a': NULL, 'b': NULL}, [], [], 0, '-inf'::double, date 'infinity',
    timestamp '-infinity', 'null'::json, '20000000-0000-4000-8000-00000000000d'::uuid, 0::hugeint, NULL, 'null', time '12:00:00'
) as t
{% if batch %}where batch = {{ batch }}{% endif %}
{% endmacro %}

{% macro postgres__typed_rows(batch) %}
select id, v, bytes, gap, numbers, names, amount, ratio, on_day, at_time, at_zone, doc, token, fine, words, of_day from (
  select 1 as batch, 1 as id, 1 as v, '\x00ff'::bytea as bytes, interval '14 months 2 days 3.5 seconds' as gap, array[1, 2] as numbers,
    array['a b', 'it''s', '"'] as names, 1.50::numeric(10, 2) as amount, 'nan'::double precision as ratio, date '2024-02-29' as on_day,
    timestamp '2024-02-29 01:02:03.000004' as at_time, timestamptz '2024-02-29 01:02:03+02' as at_zone, '{"a": [1]}'::jsonb as doc,
    'b9d1c9a2-0000-4000-8000-00000000000a'::uuid as token, true as fine, 'it''s "so" \ ' as words, time '01:02:03' as of_day
  union all
  select 2, 1, 2, '\x275c', interval '-3 days', array[3], array['x,y', '{}', ''], -0.05, 2.5, '1900-01-01', '1969-12-31 23:59:59.999999',
    '1969-12-31 23:59:59.999999+00', '[]', '00000000-0000-4000-8000-00000000000b', false, 'ü', '23:59:59.5'
  union all
  select 1, 2, 1, '\x05', interval '1 month', array[4], array['NULL'], 7, 'inf', '2000-01-01', '2000-01-01', '2000-01-01', '{}',
    '10000000-0000-4000-8000-00000000000c', true, '', '00:00:00'
  union all
  select 2, 2, 2, null, null, null, null, null, null, null, null, null, null, null, null, null, null
  union all
  select 2, 3, 1, '\x06', interval '0 days', array[]::integer[], array[]::text[], 0, '-inf', 'infinity', '-infinity', 'infinity', '[null]',
    '20000000-0000-4000-8000-00000000000d', null, 'null', '12:00:00'
) as t
{% if batch %}where batch = {{ batch }}{% endif %}
{% endmacro %}
