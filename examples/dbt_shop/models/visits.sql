{{ config(materialized='crdt', unique_key='customer_id', version_by='updated_at', merge_strategies={'visits': 'gcounter(till)'}, merge_default='max') }}
select
    customer_id,
    till,
    visits,
    updated_at
from {{ ref('till_visits') }}
