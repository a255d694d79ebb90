{% materialization incremental, adapter='duckdb' %}{{ return(mergeql.materialize_incremental()) }}{% endmaterialization %}
{% materialization incremental, default %}{{ return(mergeql.materialize_incremental()) }}{% endmaterialization %}
