-- How many trials each worker (HOST:PID) has in which state, and when it was last heard of (UTC).
-- Parameters: study.
SELECT
    COALESCE(REPLACE(w.value_json, '"', ''), 'unknown') AS worker,
    t.state AS state,
    COUNT(*) AS trials,
    MAX(COALESCE(t.datetime_complete, h.heartbeat, t.datetime_start)) AS last_seen
FROM studies s
JOIN trials t ON t.study_id = s.study_id
LEFT JOIN trial_user_attributes w ON w.trial_id = t.trial_id AND w.key = 'worker'
LEFT JOIN trial_heartbeats h ON h.trial_id = t.trial_id
WHERE s.study_name = :study
GROUP BY COALESCE(REPLACE(w.value_json, '"', ''), 'unknown'), t.state
ORDER BY worker, trials DESC, state
