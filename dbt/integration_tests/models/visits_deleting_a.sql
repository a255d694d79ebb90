{{ config(materialized='table') }}
{{ mergeql.state(sources=[ref('events')], key='id', strategies={'visits': 'gcounter(device)'}, default='max', version_by='updated_at', delete_by='gone') }}
