{{ config(materialized='table') }}
select 1 as id, 1 as _ts, cast('NaN' as double precision) as ratio, 'B' as word, 5 as low
union all
select 1, 1, cast('NaN' as double precision), 'a', 3
union all
select 2, 3, cast(2.5 as double precision), 'z', null
union all
select null, 1, cast(1 as double precision), 'no key', 1
union all
select null, 1, cast(1 as double precision), 'no key', 1
