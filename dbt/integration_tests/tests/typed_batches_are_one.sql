{{ config(enabled=var('typed_batch', 1) == 2) }}
with difference as (
    select * from {{ ref('typed') }}
    except
    select * from {{ ref('typed_at_once') }}
),

addition as (
    select * from {{ ref('typed_at_once') }}
    except
    select * from {{ ref('typed') }}
)

select id from difference
union all
select id from addition
