{{ config(materialized='table') }}
{{ mergeql.merge(sources=[ref('corners_a'), ref('corners_b'), ref('corners_c')], key='id', strategies={'low': 'min'}, version_by=['_ts DESC']) }}
