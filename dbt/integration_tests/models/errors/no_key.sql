{{ config(materialized='crdt', enabled=var('errors', false), merge_default='max') }}
select * from {{ ref('crm') }}
