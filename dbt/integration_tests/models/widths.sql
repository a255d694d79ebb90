{{ config(materialized='crdt', unique_key='id', merge_default='max') }}
select
    1 as id,
    cast({{ var('width', '1.25') }} as decimal(10, {{ var('scale', 2) }})) as price,
    cast('{{ var('width', '1.25') }}' as varchar(10)) as {{ var('spelling', 'label') }}
