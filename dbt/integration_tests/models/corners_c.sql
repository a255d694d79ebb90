{{ config(materialized='table') }}
select 3 as id, true as late, cast('2024-01-01' as date) as on_day
