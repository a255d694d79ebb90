{#- The ids of rows that one of two queries alone has. -#}
{% macro differences(left, right) %}
select id from ({{ left }} except {{ right }}) as l
union all
select id from ({{ right }} except {{ left }}) as r
{% endmacro %}
