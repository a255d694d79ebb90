{{ config(materialized='table') }}
{{ corners_c() }}
