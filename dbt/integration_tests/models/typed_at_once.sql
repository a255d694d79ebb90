{{ config(materialized='table') }}
{{ mergeql.merge(sources=['(' ~ typed_rows(0) ~ ') AS typed'], key='id', version_by='v', default='lww') }}
