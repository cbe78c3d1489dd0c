//! Services: from the objects of Kubernetes to the maps of the datapath. Pure.

pub mod plan;
