//! Services: from the objects of Kubernetes to the maps of the datapath.

pub mod balanced;
pub mod maglev;
pub mod plan;
