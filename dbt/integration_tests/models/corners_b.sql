{{ config(materialized='table') }}
select 1 as id, 1 as _ts, cast(-1 as double precision) as ratio, 'a' as word, 4 as low, true as late
union all
select 2, null, cast('NaN' as double precision), 'ä', 2, false
union all
select 2, 4, cast('NaN' as double precision), null, 7, null
union all
select null, 2, null, 'no key', 1, true
