{#- The model is built in plain SQL first; see the tests of the package. -#}
{{ config(enabled=var('corners', false)) }}
with merged as (
    {{ mergeql.merge(sources=[ref('corners_a'), ref('corners_b'), ref('corners_c')], key='id', strategies={'low': 'min'}) }}
),

difference as (
    select * from merged
    except
    select * from {{ ref('corners_newest') }}
),

addition as (
    select * from {{ ref('corners_newest') }}
    except
    select * from merged
)

select id from difference
union all
select id from addition
