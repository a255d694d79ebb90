{{ config(materialized='crdt', unique_key='id', version_by='v', merge_default='lww') }}
{{ typed_rows(var('typed_batch', 1)) }}
