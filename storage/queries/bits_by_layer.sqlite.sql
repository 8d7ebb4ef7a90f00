-- How often each width of each searched part was feasible, and the fewest bytes with it.
-- Parameters: study, max_drop (percentage points). For SQLite.
SELECT
    SUBSTR(p.param_name, 1, INSTR(p.param_name || '/', '/') - 1) AS layer,
    p.param_name AS part,
    CAST(JSON_EXTRACT(
        p.distribution_json, '$.attributes.choices[' || CAST(p.param_value AS INTEGER) || ']'
    ) AS INTEGER) AS bits,
    COUNT(*) AS trials,
    SUM(CASE WHEN CAST(d.value_json AS DECIMAL(30, 6)) <= :max_drop THEN 1 ELSE 0 END) AS feasible,
    MIN(
        CASE
            WHEN CAST(d.value_json AS DECIMAL(30, 6)) <= :max_drop
                THEN CAST(m.value_json AS DECIMAL(30, 3))
        END
    ) AS smallest_bytes
FROM studies s
JOIN trials t ON t.study_id = s.study_id AND t.state = 'COMPLETE'
JOIN trial_params p ON p.trial_id = t.trial_id
JOIN trial_user_attributes m ON m.trial_id = t.trial_id AND m.key = 'memory_bytes'
JOIN trial_user_attributes d ON d.trial_id = t.trial_id AND d.key = 'drop_bound'
WHERE s.study_name = :study
GROUP BY layer, part, bits
ORDER BY layer, part, bits
