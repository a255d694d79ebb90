{{ config(materialized='table') }}
{{ mergeql.conflicts(sources=[ref('crm'), ref('erp')], key='id', version_by='updated_at', strategies={'salary': 'max', 'tags': 'union'}) }}
