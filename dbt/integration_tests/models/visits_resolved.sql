{{ config(materialized='table') }}
{{ mergeql.resolve(sources=[ref('visits_deleting_a'), ref('visits_deleting_b')], key='id', columns={'visits': 'bigint'}) }}
