{{ config(materialized='view') }}
{{ mergeql.statement("MERGE " ~ ref('crm').include(database=false) ~ ", " ~ ref('erp').include(database=false) ~ " ON id STRATEGY salary = max, tags = union, * = lww VERSION BY updated_at") }}
