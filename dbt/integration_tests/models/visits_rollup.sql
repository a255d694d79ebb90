{{ config(materialized='table') }}
{{ mergeql.resolve(sources=[ref('visits_state_a'), ref('visits_state_b')], key='id', columns={'visits': 'bigint', 'name': 'varchar(20)'}) }}
