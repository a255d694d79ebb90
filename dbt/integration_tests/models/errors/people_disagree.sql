{{ config(materialized='view', enabled=var('errors', false)) }}
select * from {{ ref('people') }}
