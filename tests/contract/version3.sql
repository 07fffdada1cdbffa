-- A database as the last service without Alembic left it: schema version 3, with rows in every table.
BEGIN TRANSACTION;
CREATE TABLE app_versions (
	place INTEGER NOT NULL, 
	project_id VARCHAR(64) NOT NULL, 
	number INTEGER NOT NULL, 
	fab_hash VARCHAR(64) NOT NULL, 
	title TEXT NOT NULL, 
	source VARCHAR(16) NOT NULL, 
	created_by TEXT NOT NULL, 
	created_at DATETIME NOT NULL, 
	size INTEGER NOT NULL, 
	cells JSON NOT NULL, 
	files JSON NOT NULL, 
	imports JSON NOT NULL, 
	config_keys JSON NOT NULL, 
	PRIMARY KEY (place), 
	UNIQUE (project_id, fab_hash), 
	UNIQUE (project_id, number), 
	FOREIGN KEY(project_id) REFERENCES projects (id)
);
INSERT INTO "app_versions" VALUES(1,'p1',1,'ffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff','lungs','notebook','anna','2026-03-01 12:00:00.123456',12,'[{"number": 1, "source": "x = 1"}, {"number": 4, "source": "y = ''\u00e4''"}]','[{"path": "app/task.py", "text": "pass"}]','["numpy", "torch"]','["num-server-rounds"]');
CREATE TABLE approvals (
	place INTEGER NOT NULL, 
	project_id VARCHAR(64) NOT NULL, 
	fab_hash VARCHAR(64) NOT NULL, 
	site TEXT NOT NULL, 
	dataset TEXT NOT NULL, 
	state VARCHAR(16) NOT NULL, 
	steward TEXT NOT NULL, 
	reason TEXT NOT NULL, 
	decided_at DATETIME NOT NULL, 
	expires_at DATETIME, 
	conditions JSON NOT NULL, 
	first_steward TEXT NOT NULL, 
	PRIMARY KEY (place), 
	UNIQUE (project_id, fab_hash, site, dataset), 
	FOREIGN KEY(project_id) REFERENCES projects (id)
);
INSERT INTO "approvals" VALUES(1,'p1','ffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff','a','scans','approved','sam','ok','2026-03-01 12:00:00.123456','2026-03-02 12:00:00.123456','{"most_rounds": 5, "largest_message": 3221225472, "members": ["anna", "bert"]}','sue');
CREATE TABLE audit_lines (
	sequence INTEGER NOT NULL, 
	at DATETIME NOT NULL, 
	actor TEXT NOT NULL, 
	action VARCHAR(32) NOT NULL, 
	project_id TEXT NOT NULL, 
	detail JSON NOT NULL, 
	previous VARCHAR(64) NOT NULL, 
	hash VARCHAR(64) NOT NULL, 
	PRIMARY KEY (sequence), 
	UNIQUE (hash)
);
INSERT INTO "audit_lines" VALUES(1,'2026-03-01 12:00:00.123456','anna','project-created','p1','{"name": "Lungs"}','0000000000000000000000000000000000000000000000000000000000000000','3409c6d73392452978a686008eb6db4f1ddaceec0e05d8ea858386422e58d568');
INSERT INTO "audit_lines" VALUES(2,'2026-03-01 12:00:00.123456','anna','invited','p1','{"user": "bert"}','3409c6d73392452978a686008eb6db4f1ddaceec0e05d8ea858386422e58d568','4f544f5a850482a689b8a80b5eb352a500e1c950c38d9aacb5f3d99ad71a5bf5');
CREATE TABLE members (
	place INTEGER NOT NULL, 
	project_id VARCHAR(64) NOT NULL, 
	user TEXT NOT NULL, 
	state VARCHAR(16) NOT NULL, 
	invited_by TEXT NOT NULL, 
	changed_at DATETIME NOT NULL, 
	PRIMARY KEY (place), 
	UNIQUE (project_id, user), 
	FOREIGN KEY(project_id) REFERENCES projects (id)
);
INSERT INTO "members" VALUES(1,'p1','anna','joined','anna','2026-03-01 12:00:00.123456');
INSERT INTO "members" VALUES(2,'p1','bert','invited','anna','2026-03-01 12:00:00.123456');
CREATE TABLE participations (
	place INTEGER NOT NULL, 
	id VARCHAR(64) NOT NULL, 
	project_id VARCHAR(64) NOT NULL, 
	user TEXT NOT NULL, 
	site TEXT NOT NULL, 
	dataset TEXT NOT NULL, 
	kernel_id VARCHAR(64) NOT NULL, 
	active BOOLEAN NOT NULL, 
	public_key BLOB, 
	node_id VARCHAR(20), 
	client VARCHAR(16) NOT NULL, 
	client_detail TEXT NOT NULL, 
	joined_at DATETIME NOT NULL, 
	key_by TEXT NOT NULL, 
	key_at DATETIME, 
	PRIMARY KEY (place), 
	UNIQUE (id), 
	FOREIGN KEY(project_id) REFERENCES projects (id)
);
INSERT INTO "participations" VALUES(1,'t1','p1','anna','a','scans','k1',1,X'006B6579FF','18446744073709551615','ready','','2026-03-01 12:00:00.123456','sam','2026-03-01 12:00:00.123456');
CREATE TABLE projects (
	id VARCHAR(64) NOT NULL, 
	name TEXT NOT NULL, 
	description TEXT NOT NULL, 
	owner TEXT NOT NULL, 
	created_at DATETIME NOT NULL, 
	PRIMARY KEY (id)
);
INSERT INTO "projects" VALUES('p1','Lungs <b>','Nodules
in scans','anna','2026-03-01 12:00:00.123456');
INSERT INTO "projects" VALUES('p2','Skin','','carl','2026-03-01 12:00:00.123456');
CREATE TABLE run_events (
	place INTEGER NOT NULL, 
	run_id VARCHAR(64) NOT NULL, 
	kind VARCHAR(16) NOT NULL, 
	at FLOAT NOT NULL, 
	phase VARCHAR(16) NOT NULL, 
	round INTEGER NOT NULL, 
	message_type VARCHAR(16) NOT NULL, 
	node_id VARCHAR(20) NOT NULL, 
	model TEXT NOT NULL, 
	metrics JSON NOT NULL, 
	examples INTEGER NOT NULL, 
	seconds FLOAT NOT NULL, 
	size INTEGER NOT NULL, 
	text TEXT NOT NULL, 
	counts JSON NOT NULL, 
	PRIMARY KEY (place), 
	FOREIGN KEY(run_id) REFERENCES runs (id)
);
INSERT INTO "run_events" VALUES(1,'r1','reply',1.5,'federated',1,'train','18446744073709551615','','{"loss": 0.25}',7,0.5,1099511627776,'','{"confusion": [3, 1, 0, 2]}');
INSERT INTO "run_events" VALUES(2,'r1','reply',1.5,'federated',2,'train','18446744073709551615','','{"loss": 0.25}',7,0.5,1099511627776,'','{"confusion": [3, 1, 0, 2]}');
CREATE TABLE runs (
	place INTEGER NOT NULL, 
	id VARCHAR(64) NOT NULL, 
	project_id VARCHAR(64) NOT NULL, 
	number INTEGER NOT NULL, 
	fab_hash VARCHAR(64) NOT NULL, 
	rounds INTEGER NOT NULL, 
	compare BOOLEAN NOT NULL, 
	target VARCHAR(16) NOT NULL, 
	status VARCHAR(16) NOT NULL, 
	phase TEXT NOT NULL, 
	message TEXT NOT NULL, 
	started_by TEXT NOT NULL, 
	sites JSON NOT NULL, 
	created_at DATETIME NOT NULL, 
	finished_at DATETIME, 
	model_sha256 VARCHAR(64) NOT NULL, 
	model_size INTEGER NOT NULL, 
	model_round INTEGER NOT NULL, 
	round INTEGER NOT NULL, 
	nodes JSON NOT NULL, 
	seed INTEGER, 
	models JSON NOT NULL, 
	PRIMARY KEY (place), 
	UNIQUE (project_id, number), 
	UNIQUE (id), 
	FOREIGN KEY(project_id) REFERENCES projects (id)
);
INSERT INTO "runs" VALUES(1,'r1','p1',1,'ffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff',3,1,'finished','running','round 1 of 3','','anna','{"t1": "a"}','2026-03-01 12:00:00.123456',NULL,'',1099511627776,0,1,'{"18446744073709551615": "a"}',7,'[{"sha256": "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", "size": 10, "round": 1}]');
CREATE TABLE schema_version (
	version INTEGER NOT NULL, 
	PRIMARY KEY (version)
);
INSERT INTO "schema_version" VALUES(3);
CREATE TABLE site_packages (
	place INTEGER NOT NULL, 
	site TEXT NOT NULL, 
	distributions JSON NOT NULL, 
	modules JSON NOT NULL, 
	reported_by TEXT NOT NULL, 
	reported_at DATETIME NOT NULL, 
	PRIMARY KEY (place), 
	UNIQUE (site)
);
INSERT INTO "site_packages" VALUES(1,'a','{"numpy": "2.0"}','["numpy"]','anna','2026-03-01 12:00:00.123456');
CREATE INDEX ix_audit_lines_project_id ON audit_lines (project_id);
CREATE INDEX ix_members_user ON members (user);
CREATE INDEX ix_members_project_id ON members (project_id);
CREATE INDEX ix_app_versions_project_id ON app_versions (project_id);
CREATE INDEX participations_by_key ON participations (public_key);
CREATE INDEX ix_participations_user ON participations (user);
CREATE INDEX ix_participations_site ON participations (site);
CREATE INDEX ix_participations_project_id ON participations (project_id);
CREATE INDEX ix_approvals_project_id ON approvals (project_id);
CREATE INDEX ix_runs_project_id ON runs (project_id);
CREATE INDEX ix_runs_status ON runs (status);
CREATE INDEX ix_run_events_run_id ON run_events (run_id);
COMMIT;
