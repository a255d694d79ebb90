{{ config(materialized='table') }}
{{ mergeql.merge(
    sources=[ref('web_customers'), ref('till_customers'), ref('support_customers')],
    key='customer_id', version_by='updated_at', strategies={'points': 'max', 'tags': 'union'}
) }}
