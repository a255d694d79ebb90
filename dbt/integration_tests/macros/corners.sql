{#- Rows without a key, NaN, versions that tie or are NULL, columns that not every source has. -#}
{% macro corners_a() %}
select 1 as id, 1 as _ts, cast('NaN' as double precision) as ratio, 'B' as word, 5 as low
union all
select 1, 1, cast('NaN' as double precision), 'a', 3
union all
select 2, 3, cast(2.5 as double precision), 'z', null
union all
select null, 1, cast(1 as double precision), 'no key', 1
union all
select null, 1, cast(1 as double precision), 'no key', 1
{% endmacro %}

{% macro corners_b() %}
select 1 as id, 1 as _ts, cast(-1 as double precision) as ratio, 'a' as word, 4 as low, true as late
union all
select 2, null, cast('NaN' as double precision), 'ä', 2, false
union all
select 2, 4, cast('NaN' as double precision), null, 7, null
union all
select null, 2, null, 'no key', 1, true
{% endmacro %}

{% macro corners_c() %}
select 3 as id, true as late, cast('2024-01-01' as date) as on_day
{% endmacro %}
