{{ config(materialized='crdt', unique_key='id', version_by='updated_at', contract={'enforced': true}) }}
select
    id,
    {% if var('names_fail', false) %}cast(device as integer) as name,{% else %}name,{% endif %}
    updated_at
from {{ ref('late_events') if var('late', false) else ref('events') }}
-- whatever a model ends in
