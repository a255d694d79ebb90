{{ config(materialized='table', enabled=var('errors', false)) }}
{{ mergeql.merge(sources=[ref('crm'), ref('erp')], key='id', strategies={'salary': 'maxx'}, version_by='updated_at') }}
