{{ config(
    materialized='crdt', unique_key=['id'], version_by='updated_at', delete_by='gone',
    merge_strategies={'visits': 'gcounter(device)', 'name': 'lww', 'tags': 'union'}, merge_default='max', on_schema_change='append_new_columns'
) }}
select id, device, visits, name, tags, updated_at, gone
{%- if var('late', false) %}, cast(visits * 10 as integer) as tens{% endif %}
from {{ ref('late_events') if var('late', false) else ref('events') }}
