{{ config(materialized='table') }}
{{ mergeql.state(sources=[ref('events')], key='id', strategies={'name': 'lww', 'visits': 'gcounter(device)'}, default='max', version_by='updated_at') }}
