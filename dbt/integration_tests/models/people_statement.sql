{{ config(materialized='view') }}
{%- set crm, erp = ref('crm').include(database=false), ref('erp').include(database=false) -%}
{{ mergeql.statement(
    "MERGE " ~ crm ~ ", " ~ erp ~ " ON id STRATEGY salary = max, tags = union, * = lww VERSION BY updated_at"
) }}
