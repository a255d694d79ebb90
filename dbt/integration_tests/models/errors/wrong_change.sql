{{ config(materialized='crdt', enabled=var('errors', false), unique_key='id', on_schema_change='sometimes') }}
select * from {{ ref('crm') }}
