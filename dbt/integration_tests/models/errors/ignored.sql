{{ config(enabled=var('errors', false), materialized='crdt', unique_key='id', strategies={'visits': 'max'}) }}
select
    id,
    visits
from {{ ref('events') }}
