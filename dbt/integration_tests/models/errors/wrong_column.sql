{{ config(materialized='table', enabled=var('errors', false)) }}
{{ mergeql.merge(sources=[ref('crm'), ref('erp')], key='id', strategies={'salry': 'max'}, version_by='updated_at') }}
