{{ config(
    materialized='incremental', incremental_strategy='crdt', unique_key='id', version_by='updated_at', delete_by='gone',
    merge_strategies={'visits': 'gcounter(device)', 'name': 'lww', 'tags': 'union'}, merge_default='max'
) }}
{#- With `late` the late batch alone, with `everything` all batches at once. -#}
{% if not var('late', false) or var('everything', false) %}
select id, device, visits, name, tags, updated_at, gone from {{ ref('events') }}
{% endif %}
{% if var('everything', false) %} union all {% endif %}
{% if var('late', false) or var('everything', false) %}
select id, device, visits, name, tags, updated_at, gone from {{ ref('late_events') }}
{% endif %}
