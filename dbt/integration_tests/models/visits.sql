{{ config(
    materialized='incremental', incremental_strategy='crdt', unique_key='id', version_by='updated_at', delete_by='gone',
    merge_strategies={'visits': 'gcounter(device)', 'name': 'lww', 'tags': 'union'}, merge_default='max'
) }}
{#- With `late` the late batch alone, with `everything` all batches at once. -#}
{%- set batches = [ref('events'), ref('late_events')] if var('everything', false) else [ref('late_events') if var('late', false) else ref('events')] -%}
{% for batch in batches %}
    select
        id,
        device,
        visits,
        name,
        tags,
        updated_at,
        gone
    from {{ batch }}
    {% if not loop.last %}
        union all
    {% endif %}
{% endfor %}
