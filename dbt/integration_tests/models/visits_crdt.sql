{{ config(
    materialized='crdt', unique_key=['id'], version_by='updated_at', delete_by='gone',
    merge_strategies={'visits': 'gcounter(device)', 'name': 'lww', 'tags': 'union'}, merge_default='max', on_schema_change='append_new_columns'
) }}
{%- set tens = var('late', false) -%}
select
    id,
    device,
    visits,
    name,
    tags,
    updated_at,
    {% if tens %}cast(visits * 10 as integer) as tens,{% endif %}
    gone
from {{ ref('late_events') if tens else ref('events') }}
