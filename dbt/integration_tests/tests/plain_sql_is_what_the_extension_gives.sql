{#- people_plain is built with `mergeql_plain_sql` or without; either way it has these rows. -#}
{%- set strategies = {'salary': 'max', 'updated_at': 'max'} -%}
{% if var('mergeql_plain_sql', false) %}
    select 1 as no_row
    where 1 = 0
{% else %}
    with merged as (
        {{ mergeql.merge(sources=[ref('crm'), ref('erp')], key='id', version_by='updated_at', strategies=strategies) }}
    ),

    differences as (
        select * from merged
        except
        select * from {{ ref('people_plain') }}
    ),

    additions as (
        select * from {{ ref('people_plain') }}
        except
        select * from merged
    )

    select id from differences
    union all
    select id from additions
{% endif %}
