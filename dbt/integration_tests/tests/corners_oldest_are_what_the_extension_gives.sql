{#- The model is built in plain SQL first; see the tests of the package. -#}
{{ config(enabled=var('corners', false)) }}
with merged as (
    {{ mergeql.merge(sources=[ref('corners_a'), ref('corners_b'), ref('corners_c')], key='id', strategies={'low': 'min'}, version_by=['_ts DESC']) }}
),

difference as (
    select * from merged
    except
    select * from {{ ref('corners_oldest') }}
),

addition as (
    select * from {{ ref('corners_oldest') }}
    except
    select * from merged
)

select id from difference
union all
select id from addition
