{#- Drops the states that are kept of a model. -#}
{% macro forget_states(model) %}
  {%- call statement('forget') -%}
    drop table {{ ref(model).incorporate(path={'identifier': model ~ '__mergeql_state'}, type='table') }}
  {%- endcall -%}
  {%- do adapter.commit() -%}
{% endmacro %}
