{{ config(materialized='table') }}
{{ corners_b() }}
