mod api;

pub(super) use api::installed_version;
