{{ config(materialized='crdt', enabled=var('errors', false), unique_key='id', merge_defalt='max') }}
select * from {{ ref('crm') }}
